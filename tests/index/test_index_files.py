"""Broken and hostile index files: each is one clear error that names the file."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from forging import PREFIX, REUSED, forge, forge_calibration, forge_spec, forged, header_of, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import silicon_index, written

from quests_md.index import Index


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
def test_one_flipped_bit_of_the_data_is_seen_when_it_is_verified(saved, tmp_path, data, bit):
    content = saved.read_bytes()
    text, values = header_of(content)
    entry = data.draw(st.sampled_from(list(json.loads(text)["sections"].values())))
    size = np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"]))
    place = len(content) - len(values) + entry["offset"] + data.draw(st.integers(0, size - 1))
    refuse(written(tmp_path, flipped(content, place, bit)), Index.verify, "damaged")


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
    (forge_rows("shape", [95, 63]), "frame offsets"),
    (forge_section("order", "shape", [95]), "search tree is not one over these rows"),
    (forge_section("node_centres", "shape", [1, 63]), "search tree is not one over these rows"),
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
        ("order", 0, 5, "order does not name every row once"),
        ("node_centres", 0, np.nan, "centres that are not finite"),
        ("node_centres", 0, 7.0, "node_centres is not that of the rows"),
        ("node_radius", 0, -1.0, "node_radius that are no distances"),
        ("node_radius", 0, 1e-3, "node_radius is not that of the rows"),
        ("node_spread", 0, np.inf, "node_spread that are no distances"),
        ("node_spread", 0, 0.0, "node_spread is not that of the rows"),
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
