"""Indexes of own descriptors: arrays of any width and scale, and SOAP of real silicon."""

from __future__ import annotations

import dataclasses
import json

import ase.io
import naive
import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner
from forging import REUSED, forge, forge_calibration, forge_spec, forged, header_of, refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import written
from paths import ROOT
from rounding import assert_promised
from scipy.stats import spearmanr

from quests_md import Frame, Index, Monitor, cli
from quests_md.errors import CalibrationError, InputError, SourceError
from quests_md.index import _data, calibrate, fit_error_bound
from quests_md.sources import read_descriptors

DATA = ROOT.parent / "shared" / "data" / "zuo2020"


def clouds(d, n=300, scale=1.0, seed=0):
    """Return rows in a few clouds of radius `scale`, far from each other and from 0."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(100.0, 10.0, (4, d))
    return scale * (centres[rng.integers(4, size=n)] + rng.normal(size=(n, d)) * rng.uniform(0.1, 3.0) / np.sqrt(d))


OFFSETS = np.arange(0, 301, 6)


@pytest.fixture(scope="module")
def index():
    return Index.from_descriptors(clouds(40), 0.7, frame_offsets=OFFSETS, name="features of a test")


# -- what it answers -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    d=st.sampled_from([1, 2, 3, 7, 8, 9, 63, 130, 700]),
    scale=st.sampled_from([1e-7, 1e-2, 1.0, 1e5, 1e8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_dH_is_right_at_any_width_and_scale(d, scale, seed):
    """To what rows in single precision allow: the bound that the docstring of `delta_entropy` gives."""
    x, query, h = clouds(d, 300, scale), clouds(d, 60, scale, seed), 0.7 * scale
    index = Index.from_descriptors(x, h)
    expected = -naive.log_kernel_sum(query, x, h)
    dH = index.delta_entropy(query)
    longest = np.linalg.norm(x - index.centre, axis=1).max()
    bound = 6e-8 * longest * np.sqrt(2 * (expected + np.log(len(x)))) / h + 1e-10 * np.maximum(1, abs(expected))
    assert (np.abs(dH - expected) <= bound).all()
    single = -index.log_kernel_sum(query, precision="single")
    assert (np.abs(single - dH) <= np.maximum(1e-4, 1e-6 * np.abs(dH))).all()
    for threshold in (0.0, float(np.median(dH))):
        np.testing.assert_array_equal(index.exceeds(query, threshold), dH > threshold)


def test_wide_rows_are_laid_out_in_parts(monkeypatch):
    x, query = clouds(40), clouds(40, 60, seed=5)
    expected = Index.from_descriptors(x, 0.7).delta_entropy(query)
    assert (_data.limit_layout(63), _data.limit_layout(256), _data.limit_layout(2560)) == (100_000, 100_000, 10_000)
    monkeypatch.setattr("quests_md.index._parts._VALUES", 40 * 100)
    assert_promised(Index.from_descriptors(x, 0.7).delta_entropy(query), expected)


def test_what_is_saved_is_opened_and_verified(index, tmp_path):
    path, index = tmp_path / "own.qindex", dataclasses.replace(index, calibration=calibrate(index))
    index.save(path)
    Index.verify(path)
    opened, query = Index.open(path), clouds(40, 60, seed=5)
    assert (opened.descriptor.name, opened.descriptor.width, opened.elements) == ("features of a test", 40, ())
    np.testing.assert_array_equal(opened.delta_entropy(query), index.delta_entropy(query))
    np.testing.assert_array_equal(opened.calibration.maxima, index.calibration.maxima)
    assert opened.describe() | {"name": "features of a test", "width": 40} == opened.describe()
    content = path.read_bytes()
    opened.save(path)
    assert path.read_bytes() == content


def test_an_extended_index_is_that_of_all_rows(index):
    more = clouds(40, 60, seed=5).astype(np.float32)
    larger = index.extend(more, frame_offsets=[0, 25, 60])
    assert (larger.generation, len(larger.frame_offsets), larger.frame_offsets[-1]) == (1, len(OFFSETS) + 2, 360)
    whole = Index.from_descriptors(np.vstack([clouds(40), more]), 0.7)
    query = clouds(40, 60, seed=6)
    np.testing.assert_allclose(larger.delta_entropy(query), whole.delta_entropy(query), rtol=1e-5, atol=1e-4)
    assert (larger.delta_entropy(query) <= index.delta_entropy(query)).all()


def test_a_calibration_leaves_out_groups_of_frames(index):
    made = calibrate(index)
    assert (made.symbols, made.typical, made.frames) == (("X",), {"X": 6}, 50)
    x, frames = clouds(40), np.repeat(np.arange(50), 6)
    for frame in (0, 17, 49):
        others = frames // 4 != frame // 4
        left_out = -naive.log_kernel_sum(x[frames == frame], x[others], 0.7)
        assert made.maxima[frame, 0] == pytest.approx(left_out.max(), rel=1e-5, abs=2e-4)
    assert made.false_alarm(0.1, {"X": 6})["X"] >= np.quantile(made.maxima, 0.8)
    with pytest.raises(CalibrationError, match="one independent frame"):
        calibrate(Index.from_descriptors(x, 0.7))


# -- what it cannot ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        lambda index, atoms: Monitor(index, select=1.0, halt=2.0),
        lambda index, atoms: index.delta_entropy(atoms),
        lambda index, atoms: index.exceeds([Frame.from_atoms(atoms)], 1.0),
        lambda index, atoms: index.extend(atoms),
        lambda index, atoms: index.require(k=32),
        lambda index, atoms: fit_error_bound(index, [(Frame.from_atoms(atoms), np.zeros(len(atoms)))]),
    ],
)
def test_what_needs_frames_says_that_there_are_none(index, action):
    with pytest.raises(InputError, match=r"holds own descriptors \(features of a test\), which are not computed"):
        action(index, bulk("Si", cubic=True))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": np.zeros((0, 4))}, "array of numbers"),
        ({"x": np.zeros(4)}, r"array of numbers \(n, d\) with a row at least, not float64 \(4,\)"),
        ({"x": np.zeros((2, 3, 4))}, "array of numbers"),
        ({"x": [[1.0, 2.0]]}, "array of numbers .* not list"),
        ({"x": np.array([["a"]])}, "array of numbers"),
        ({"x": np.array([[1.0], [np.nan]])}, "row 1 holds values that are not finite"),
        ({"x": np.array([[1.0], [1e16]])}, "row 1 holds values .* beyond 1e"),
        ({"bandwidth": "auto"}, "'auto' is a rule for frames"),
        ({"bandwidth": 0.0}, "positive number"),
        ({"bandwidth": 1e-12}, "not between 1e-09 and 1e.09: take another unit"),
        ({"frame_offsets": [0, 2]}, "frame_offsets must ascend from 0 to the 3 rows"),
        ({"frame_offsets": [0, 2, 2, 3]}, "frame_offsets must ascend"),
        ({"frame_offsets": [0.0, 3.0]}, "frame_offsets must ascend"),
        ({"name": ""}, "one line of text"),
        ({"name": "a\nb"}, "one line of text"),
    ],
)
def test_arrays_that_cannot_be_indexed_are_refused(change, match):
    with pytest.raises(InputError, match=match):
        Index.from_descriptors(**{"x": np.ones((3, 4)), "bandwidth": 0.1, **change})


def test_arrays_of_another_width_are_refused(index):
    for action in (index.delta_entropy, index.extend, lambda x: index.exceeds(x, 1.0)):
        with pytest.raises(InputError, match=r"39.*other descriptors"):
            action(np.zeros((3, 39)))
    with pytest.raises(InputError, match="frame_offsets are those of own descriptors"):
        Index.build(bulk("Si")).extend(bulk("Si"), frame_offsets=[0, 2])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *((forge_spec("name", v), "malformed") for v in (3, None, "", "a\nb", "x" * 1000)),
        *((forge_spec("width", v), "malformed") for v in (0, -1, True, 1.5, None, 1 << 60)),
        *((forge_spec("width", v), "width of the rows") for v in (39, 41)),
        (forge_spec("k", 32), "malformed"),
        (forge("spec", {"k": 32, "cutoff": 5.0, "species": None}), "width of the rows"),
        (forge("elements", ["Si"]), "own descriptors have no elements"),
        (forge_calibration("frames", 2), "malformed: ValueError: calibration: symbols"),
    ],
)
def test_hostile_headers_are_refused(index, tmp_path, change, match):
    index.save(tmp_path / "si.qindex")
    content = (tmp_path / "si.qindex").read_bytes()
    refuse(written(tmp_path, forged(content, change(json.loads(header_of(content)[0])))), match=match)


# -- files --------------------------------------------------------------------------------------------


def quests_md(*arguments, code=0):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_command_line_builds_extends_and_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("frames.npy", clouds(40).reshape(50, 6, 40))
    np.save("more.npy", clouds(40, 25, seed=5))
    np.save("query.npy", clouds(40, 60, seed=6).astype(np.float32))
    shown = quests_md("index", "build", "frames.npy", "--bandwidth", 0.7, "--name", "MACE", "-o", "a.qindex").stdout
    assert "300 in 50 frames" in shown
    assert "own: MACE; 40 columns" in shown
    assert "0.7 as given, in the unit of the descriptor" in shown
    assert "at 6 rows a frame" in shown
    shown = quests_md("index", "extend", "a.qindex", "more.npy", "more.npy", "-o", "b.qindex").stdout
    assert "350 in 52 frames" in shown
    quests_md("index", "verify", "b.qindex")
    assert json.loads(quests_md("index", "info", "b.qindex", "--json").stdout)["name"] == "MACE"
    quests_md("dh", "query.npy", "--index", "b.qindex", "-o", "dH.npy")
    expected = Index.open("b.qindex").delta_entropy(np.load("query.npy"))
    assert_promised(np.load("dH.npy"), expected)
    assert "300" in quests_md("entropy", "a.qindex").stdout


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["index", "build", "x.npy", "-o", "a.qindex"], "give --bandwidth H in it"),
        (["index", "build", "x.npy", "--bandwidth", "auto", "-o", "a.qindex"], "give --bandwidth H in it"),
        (["index", "build", "x.npy", "--bandwidth", "1", "--k", "3", "-o", "a.qindex"], "--k is for frames"),
        (["index", "build", "x.npy", "si.xyz", "--bandwidth", "1", "-o", "a.qindex"], "one index has one kind"),
        (["index", "build", "x.npy", "y.npy", "--bandwidth", "1", "-o", "a.qindex"], "5 columns and x.npy has 4"),
        (["index", "build", "si.xyz", "--name", "SOAP", "-o", "a.qindex"], "--name is for own descriptors"),
        (["index", "extend", "own.qindex", "si.xyz", "-o", "a.qindex"], "holds own descriptors"),
        (["index", "extend", "si.qindex", "x.npy", "-o", "a.qindex"], "own descriptors"),
        (["dh", "si.xyz", "--index", "own.qindex"], "must be an array"),
        (["dh", "si.qindex", "--index", "own.qindex"], "must be an array"),
        (["dh", "x.npy", "--index", "si.qindex"], "own descriptors"),
        (["entropy", "x.npy"], "give --bandwidth H in it"),
        (["watch", "si.xyz", "--index", "own.qindex", "--select", "1", "--halt", "2"], "holds own descriptors"),
        (
            ["cutout", "si.xyz", "--index", "own.qindex", "--radius", "5", "--threshold", "1", "-o", "a.xyz"],
            "holds own descriptors",
        ),
    ],
)
def test_the_command_line_tells_frames_from_own_descriptors(tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    bulk("Si", cubic=True).write("si.xyz", format="extxyz")
    Index.build(bulk("Si", cubic=True)).save("si.qindex")
    Index.from_descriptors(np.ones((3, 63)), 1.0).save("own.qindex")
    np.save("x.npy", np.ones((3, 4)))
    np.save("y.npy", np.ones((3, 5)))
    stderr = quests_md(*arguments, code=1).stderr
    assert stderr.startswith("quests-md: error: ")
    assert match in stderr
    assert not (tmp_path / "a.qindex").exists()


@settings(max_examples=20, deadline=None, suppress_health_check=REUSED)
@given(content=st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\x93NUMPY\x01\x00" + tail))
def test_files_that_are_no_array_are_refused(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.npy: "):
        read_descriptors(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "array", [np.ones(3), np.ones((2, 0)), np.ones((1, 2, 3, 4)), np.array([["a"]]), np.ones((2, 2), bool)]
)
def test_arrays_of_a_wrong_kind_are_refused(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(SourceError, match="descriptors are an array of numbers"):
        read_descriptors(tmp_path / "x.npy")


def test_pickles_are_not_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(SourceError, match="without pickle"):
        read_descriptors(tmp_path / "x.npy")
    np.savez(tmp_path / "y.npz", np.ones((2, 2)))
    (tmp_path / "y.npz").rename(tmp_path / "y.npy")
    with pytest.raises(SourceError, match="not an array that numpy reads"):
        read_descriptors(tmp_path / "y.npy")


# -- a real one -----------------------------------------------------------------------------------------


def test_soap_of_silicon_tells_a_strange_atom(structure):
    dscribe = pytest.importorskip("dscribe.descriptors", reason="pip install 'quests_md[test]'")
    soap = dscribe.SOAP(species=["Si"], r_cut=5.0, n_max=6, l_max=4, periodic=True)
    frames = []
    for seed in range(6):
        frames.append(structure("si") * (2, 2, 2))
        frames[-1].rattle(0.05, seed=seed)
    x = [soap.create(atoms) for atoms in frames]
    index = Index.from_descriptors(np.vstack(x[:5]), 3.0, frame_offsets=np.arange(0, 321, 64), name="SOAP")
    dH = index.delta_entropy(x[5])
    np.testing.assert_allclose(dH, -naive.log_kernel_sum(x[5], np.vstack(x[:5]), 3.0), rtol=1e-6, atol=1e-4)
    strange = frames[5].copy()
    strange.positions[7] += [0.6, 0.3, 0.0]
    moved = index.delta_entropy(soap.create(strange))
    assert moved.max() > 5.0 * dH.max()
    assert strange.get_distance(7, moved.argmax(), mic=True) < 3.0


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}: the reference data of Zuo et al., which stay outside")
def test_soap_of_dft_frames_orders_environments_much_as_the_built_in_descriptor_does():
    dscribe = pytest.importorskip("dscribe.descriptors", reason="pip install 'quests_md[test]'")
    soap = dscribe.SOAP(species=["Si"], r_cut=5.0, n_max=6, l_max=4, periodic=True)
    reference, query = ase.io.read(DATA / "Si_training.extxyz", "::4"), ase.io.read(DATA / "Si_test.extxyz", ":")
    x, q = (np.vstack([soap.create(atoms) for atoms in frames]) for frames in (reference, query))
    index = Index.from_descriptors(x, 10.0, name="SOAP")
    dH, expected = index.delta_entropy(q), -naive.log_kernel_sum(q, x, 10.0)
    longest = np.linalg.norm(x - index.centre, axis=1).max()
    assert (np.abs(dH - expected) <= 6e-8 * longest * np.sqrt(2 * (expected + np.log(len(x)))) / 10.0 + 1e-9).all()
    np.testing.assert_array_equal(index.exceeds(q, 5.0), dH > 5.0)
    assert spearmanr(dH, Index.build(reference).delta_entropy(query)).statistic > 0.5
