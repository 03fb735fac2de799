"""Broken and hostile index files: each is one clear error that names the file."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
from forging import PREFIX, REUSED, forge, forge_calibration, forge_spec, forged, header_of, refuse, with_values
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import silicon_frames, silicon_index, written

from quests_md.errors import InputError
from quests_md.index import Index, calibrate
from quests_md.index._mapped import MappedFile


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of the saved index."""
    path = tmp_path_factory.mktemp("index") / "si.qindex"
    silicon_index().save(path)
    return path


@pytest.fixture
def content(saved):
    """The bytes of the saved index."""
    return saved.read_bytes()


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
def test_one_flipped_bit_of_the_data_is_seen_when_it_is_opened(saved, tmp_path, data, bit):
    content = saved.read_bytes()
    text, values = header_of(content)
    name, entry = data.draw(st.sampled_from(list(json.loads(text)["sections"].items())))
    size = np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"]))
    place = len(content) - len(values) + entry["offset"] + data.draw(st.integers(0, size - 1))
    action = data.draw(st.sampled_from([Index.open, Index.verify]))
    refuse(
        written(tmp_path, flipped(content, place, bit)), action, f"section {name} is damaged .*: restore .* or build"
    )


def flipped(content, place, bit):
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def forge_section(section, key, value):
    return lambda header: (
        header | {"sections": header["sections"] | {section: header["sections"][section] | {key: value}}}
    )


def forge_rows(key, value):
    return forge_section("rows", key, value)


NAN, INF = float("nan"), float("inf")
CALIBRATION = {
    "symbols": [[], ["Zz"], [14], ["X"], ["Si", "Ge"], 3, None],
    "sizes": [[], [[8]], [[8], [-1]], [[8], [True]], [[8], [1.0]], [[8], 3], [[8], []], 3, None],
    "maxima": [[[0.5]], [[0.5], [NAN]], [[0.5], [INF]], [[0.5], ["1"]], [[0.5], [1]], [0.5, 0.5], None],
    **{key: [-1.0, NAN, INF, 1, "0"] for key in ("correlation", "redundancy")},
    "force_error": [3, [], {}, {"bins": 3}],
    **{key: [-1, 1.5, True, "1", None, 1 << 60] for key in ("frames", "groups", "copies")},
}
SECTIONS = ["rows", "centre", "frame_offsets", "numbers", "pair_distances"]
MALFORMED = {  # what a header must not say, and where
    forge: {
        "format": [0, -1, True, "1", 1.0, None],
        "bandwidth": [NAN, INF, 0.0, -0.01, True, "0.015", 1e308, 1e-320, 1e10],
        "generation": [True, -1, 0.5, 1, 1 << 40],
        "data_bytes": [True, -64, "0", 1 << 60],
        "provenance": [
            *([], None, {"sources": 3}, {"sources": [3]}, {"created": 3}, {"bandwidth_rule": []}),
            *({"generations": v} for v in (3, [3], [{"generation": 1}])),
        ],
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
    (forge("elements", ["Si", "Si"]), "order of the atomic numbers"),
    *((forge_spec("cutoff", v), "cutoff, smallest distances and rows do not belong together") for v in (6.0, 1e300)),
    (forge_spec("cutoff", 1.0), "smallest distances"),
    *(
        (forge_calibration(k, v), "the calibration is not one of these frames")
        for k, values in {"frames": [1, 9], "groups": [1, 3], "copies": [7], "correlation": [0.5, 9.0]}.items()
        for v in values
    ),
    *((forge_calibration(k, v), "calibration is not one of") for k, v in (("sizes", [[97], [0]]), ("redundancy", 5.0))),
    (forge_calibration("symbols", ["Ge"]), "the calibration is not one of these frames"),
    *((forge_calibration("maxima", [[v], [None]]), "a dH that no row of the index can have") for v in (1e300, -6.0)),
    *((forge("frame_groups", v), "malformed") for v in ("ab", [1], None)),
    (forge("frame_groups", ["a"]), "groups are not those of the frames"),
    *((forge("calibration", v), "malformed") for v in (3, [], "", {}, {"symbols": ["Si"]})),
    *((forge_calibration(k, v), "malformed") for k, values in CALIBRATION.items() for v in values),
    *((lambda h, k=k: forge_calibration(k, 0, drop=True)(h), "malformed") for k in CALIBRATION),
    (forge("elements", [14]), "malformed"),
    *((forge_spec("k", v), "width of the rows") for v in (31, 33, 10**30)),
    (forge("format", 2), "format 2 is newer than format 1: upgrade"),
    (forge("data_bytes", 1 << 30), "truncated or damaged"),
    (forge_rows("shape", [0, 63]), "section rows is empty"),
    *((forge_section(k, "shape", v), f"section {k} is damaged") for k, v in (("rows", [95, 63]), ("order", [95]))),
    (forge_section("node_centres", "shape", [1, 63]), "section node_centres is damaged"),
    (forge_section("node_radius", "dtype", "<f8"), "malformed"),
    (lambda h: h | {"sections": {n: v for n, v in h["sections"].items() if n != "order"}}, "malformed"),
]


@pytest.mark.parametrize(("change", "match"), HOSTILE)
def test_hostile_headers_with_a_right_hash_are_refused(content, tmp_path, change, match):
    header = json.loads(header_of(content)[0])
    refuse(written(tmp_path, forged(content, change(header))), match=match)


def test_a_header_with_a_right_calibration_and_one_of_an_earlier_version_are_read(content, tmp_path):
    header = json.loads(header_of(content)[0])
    index = Index.open(written(tmp_path, forged(content, forge_calibration("frames", 2)(header))))
    assert index.calibration.maxima.tolist() == [[0.5], [-INF]]
    early = {key: value for key, value in header.items() if key not in ("calibration", "frame_groups")}
    index = Index.open(written(tmp_path, forged(content, early)))
    assert (index.calibration, index.frame_groups) == (None, ())


OFFSETS = "frame_offsets: the frame offsets do not divide the rows"
DISTANCES = "pair_distances: the smallest distances are not those"
TREE = "of the search tree is not that of its rows"


@pytest.mark.parametrize(
    ("section", "place", "value", "match"),
    [
        ("centre", 0, np.nan, "centre is not finite"),
        *(("centre", place, v, "not those of a descriptor") for place in (1, 32, 62) for v in (-1.0, 7.0, 1e300)),
        ("centre", 0, 0.1, "do not belong together"),
        *(("frame_offsets", 0, v, OFFSETS) for v in (-3, 1)),
        *(("frame_offsets", 1, v, OFFSETS) for v in (10**6, 0, -1, 2**63 - 1)),
        ("frame_offsets", -1, 95, OFFSETS),
        ("frame_offsets", slice(1, 3), [2**63 - 1, -2], OFFSETS),  # differences that overflow ascend
        ("numbers", 0, 0, "atomic numbers"),
        ("numbers", 0, 300, "atomic numbers"),
        ("numbers", 0, 32, "list of elements"),
        *(("pair_distances", 0, v, DISTANCES) for v in (np.nan, 0.0, -1.0, 5.1, 1e30)),
        *(("pair_distances", 0, v, "do not belong together") for v in (np.inf, 2.5, 1e-3)),
        *(("rows", 0, v, "rows: it holds values that are not finite") for v in (np.nan, np.inf)),
        *(("rows", 0, v, TREE) for v in (1.0, 1e30, -1e30)),
        *(("order", 0, v, "order: it does not name every environment once") for v in (5, -1, 96, 1 << 30)),
        ("node_centres", 0, np.nan, "centres that are not finite"),
        ("node_centres", 0, 7.0, TREE),
        ("node_radius", 0, -1.0, "node_radius that are no distances"),
        *(("node_radius", 0, v, f"section node_radius: node 0 {TREE}") for v in (1e-3, 1e30)),
        ("node_spread", 0, np.inf, "node_spread that are no distances"),
        *(("node_spread", 0, v, f"section node_spread: node 0 {TREE}") for v in (0.0, 1e30)),
    ],
)
def test_impossible_content_with_a_right_checksum_is_refused(content, tmp_path, section, place, value, match):
    def change(arrays):
        arrays[section].reshape(-1)[place] = value

    path = written(tmp_path, with_values(content, change))
    for action in (Index.open, Index.verify):
        refuse(path, action, match)


@pytest.mark.parametrize(("name", "by"), [("node_centres", 1e-6), ("node_radius", -1e-6), ("node_spread", -1e-6)])
def test_a_bound_of_any_node_that_does_not_hold_is_refused(tmp_path, name, by):
    """Four levels, and parts of a leaf and of a node at the end: all nodes of a tree."""
    Index.from_descriptors(np.random.default_rng(3).normal(1.0, 0.1, (1100, 5)), 0.1).save(tmp_path / "own.qindex")
    content = (tmp_path / "own.qindex").read_bytes()
    nodes = len(Index.open(tmp_path / "own.qindex").node_radius)
    assert nodes == 35 + 9 + 3 + 1
    for node in range(nodes):

        def change(arrays, node=node):
            arrays[name][node] += by

        refuse(written(tmp_path, with_values(content, change)), match=f"section {name}: node {node} ")


# -- files that change, and what was verified --------------------------------------------------------------------------

QUESTIONS = {
    "dH": lambda index: index.delta_entropy(silicon_frames()[0]),
    "exceeds": lambda index: index.exceeds(silicon_frames()[0], 1.0),
    "extend": lambda index: index.extend(silicon_frames()[0]).rows.copy(),
    "calibrate": lambda index: calibrate(index).maxima,
}


@pytest.fixture
def mapped(saved, tmp_path, monkeypatch):
    """The path of an index whose rows are mapped, as those of a large one are, and which was written long ago."""
    monkeypatch.setattr("quests_md.index._parts.LAID_OUT", 40)
    path = written(tmp_path, saved.read_bytes())
    os.utime(path, (1e9, 1e9))
    return path


def damage(path):
    """Overwrite a file in place, by one of the same size."""
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2, 6))


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("overwrite", [damage, lambda path: os.truncate(path, 1000)], ids=["overwritten", "truncated"])
def test_an_index_in_memory_stays_and_a_mapped_one_refuses(saved, mapped, monkeypatch, overwrite, question):
    expected, large = question(Index.open(saved)), Index.open(mapped)
    with monkeypatch.context() as patch:
        patch.setattr("quests_md.index._parts.LAID_OUT", 100_000)
        small = Index.open(mapped)
    overwrite(mapped)
    for _ in range(2):  # it does not forget
        refuse(
            mapped, lambda path: question(large), match="overwritten or truncated while it was in use.* never overwrite"
        )
    refuse(mapped, lambda path: large.save(path.with_name("new.qindex")), match="overwritten or truncated")
    assert not mapped.with_name("new.qindex").exists()
    np.testing.assert_allclose(question(small), expected, rtol=1e-12)


@pytest.mark.parametrize("how", ["touched", "replaced", "removed", "copied"])
def test_a_mapped_index_outlives_what_leaves_its_rows_alone(mapped, how):
    index, question = Index.open(mapped), QUESTIONS["dH"]
    expected = question(index)
    if how == "touched":
        os.utime(mapped)
    elif how == "replaced":
        (mapped.parent / "new").write_bytes(b"new")
        os.replace(mapped.parent / "new", mapped)
    elif how == "removed":
        mapped.unlink()
    else:
        index = pickle.loads(pickle.dumps(index))
        damage(mapped)
    np.testing.assert_array_equal(question(index), expected)


def test_a_mapped_file_is_verified_once_until_it_changes(mapped, monkeypatch):
    read = []
    hash_rows = MappedFile.hash
    monkeypatch.setattr(MappedFile, "hash", lambda self: read.append(self) or hash_rows(self))
    Index.open(mapped)
    Index.open(mapped)
    assert len(read) == 1
    Index.verify(mapped)
    assert len(read) == 2
    os.utime(mapped)  # now: a further change may leave this time as it is
    Index.open(mapped)
    Index.open(mapped)
    assert len(read) == 4
    damage(mapped)
    refuse(mapped, match="damaged")


def test_an_index_that_could_not_be_opened_again_is_not_saved(saved, tmp_path):
    index = Index.open(saved)
    index.calibration = calibrate(Index.build([f * (2, 1, 1) for f in silicon_frames()]))
    for wrong, match in (
        (index, "the calibration is not one"),
        (Index.build(silicon_frames(), sources=[3]), "sources"),
    ):
        with pytest.raises(InputError, match=match):
            wrong.save(tmp_path / "new.qindex")
    assert not list(tmp_path.iterdir())
