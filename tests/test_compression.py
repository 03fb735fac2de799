"""Choices of frames against a naive twin, the peer `quests`, and what they must obey."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import compressed
from rounding import assert_promised

from quests_md import DescriptorSpec, compression, information
from quests_md.compression import METHODS, compress
from quests_md.errors import InputError
from quests_md.kernels import choice


def joined(frames):
    """Return frames (rows of each) as one array and its offsets."""
    return np.concatenate(frames), np.cumsum([0] + [len(rows) for rows in frames])


@pytest.fixture(scope="module")
def silicon():
    """Return the rows of 26 frames of silicon: of different sizes, strained, hot and cold."""
    frames = []
    for seed in range(26):
        atoms = bulk("Si", cubic=True) * ((1, 1, 1), (2, 1, 1), (2, 2, 1))[seed % 3]
        atoms.set_cell(atoms.cell * (0.97 + 0.003 * seed), scale_atoms=True)
        atoms.rattle((0.02, 0.08, 0.2, 0.35)[seed % 4], seed=seed)
        frames.append(DescriptorSpec().compute(atoms))
    return frames


@pytest.fixture(scope="module")
def peer(silicon, quests):
    """Return the compressor of `quests` on the same rows."""
    from quests.compression.compress import DatasetCompressor

    compressor = DatasetCompressor.__new__(DatasetCompressor)
    compressor.bandwidth, compressor.batch_size, compressor.dset = 0.015, 20000, silicon
    compressor._descriptors = silicon
    compressor._entropies = np.array([quests.entropy(rows, 0.015) for rows in silicon])
    return compressor


# -- against the peer and the naive twin -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 13, 26, 40])
@pytest.mark.parametrize(("method", "name"), [("msc", "msc"), ("farthest", "fps")])
def test_choices_are_those_of_quests(silicon, peer, method, name, size):
    expected = peer.get_indices(name, size)
    assert compress(*joined(silicon), size, method).selected.tolist() == expected


def test_choices_beside_a_reference_are_those_of_quests(silicon, peer):
    (first,) = compress(*joined(silicon), 1).selected.tolist()
    known = [silicon[first], *silicon[20:]]
    expected = peer.get_indices("msc_conditional", 9, reference=known)
    found = compress(*joined(silicon), 9, reference=np.concatenate(known))
    assert found.selected.tolist() == expected
    assert found.selected[0] != first


def test_choices_of_mean_rows_are_those_of_quests(silicon, peer, monkeypatch):
    from quests.compression import baseline

    found = compress(*joined(silicon), 12, "mean_farthest", seed=3).selected.tolist()
    monkeypatch.setattr(baseline.np.random, "randint", lambda *_: found[0])
    assert found == peer.get_indices("mean_fps", 12)


def test_what_a_choice_holds_is_what_quests_says(silicon, peer):
    from quests.compression.metrics import sequential_metrics

    found = compress(*joined(silicon), 0.4)
    assert len(found.selected) == 10
    chosen = found.selected.tolist()
    rows = sequential_metrics(silicon, chosen)
    growth = found.growth()
    for name, values in {"entropy": growth.entropy, "diversity": growth.diversity, "n_envs": growth.n_env}.items():
        np.testing.assert_allclose(values, [row[name] for row in rows], rtol=1e-9)
    overlaps = [peer.overlap(chosen[: n + 1]) for n in range(10)]
    np.testing.assert_allclose(growth.overlap, overlaps, rtol=1e-12)
    last = (growth.n_env[-1], growth.entropy[-1], growth.diversity[-1], growth.overlap[-1])
    assert (found.n_env, found.entropy, found.diversity, found.overlap) == pytest.approx(last, rel=1e-12)


def drawn_frames(seed, width, spread, sizes, copies):
    """Return frames of these sizes near each other or far apart, and copies of some."""
    rng = np.random.default_rng(seed)
    frames = [rng.normal(rng.normal(0, spread, width), spread * rng.random(), (n, width)) for n in [*sizes, 4]]
    return frames + [frames[int(f)] for f in rng.integers(0, len(frames), copies)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([1, 3, 17]),
    spread=st.sampled_from([0.003, 0.05, 3.0]),  # the last one underflows in quests
    sizes=st.lists(st.sampled_from([0, 1, 2, 5, 6, 7, 16, 33, 70]), min_size=1, max_size=12),
    copies=st.integers(0, 3),
    method=st.sampled_from(["msc", "farthest", "reference"]),
    share=st.floats(0.1, 1.0),
)
def test_choices_are_those_of_the_naive_twin(seed, width, spread, sizes, copies, method, share):
    frames = drawn_frames(seed, width, spread, sizes, copies)
    n = max(1, round(share * sum(len(rows) > 0 for rows in frames)))
    reference = frames[0][:3] + 0.01 if method == "reference" and len(frames[0]) else None
    method = "farthest" if method == "farthest" else "msc"
    found = compress(*joined(frames), share, method, reference=reference, threads=2)
    assert found.selected.tolist() == compressed(frames, n, 0.015, reference, method)
    growth = found.growth()
    for m in (1, len(found.selected)):
        rows, every = np.concatenate([frames[f] for f in found.selected[:m]]), np.concatenate(frames)
        assert growth.entropy[m - 1] == pytest.approx(information.entropy(rows), abs=1e-9)
        assert growth.diversity[m - 1] == pytest.approx(information.diversity(rows), abs=1e-9)
        assert growth.overlap[m - 1] == np.mean(information.delta_entropy(every, rows) < 1e-5)


def test_plain_loops_choose_the_same(silicon, monkeypatch):
    vector = [compress(*joined(silicon), 12, method) for method in ("msc", "farthest")]
    monkeypatch.setattr(choice, "PLAIN", 1)
    for method, expected in zip(("msc", "farthest"), vector, strict=True):
        found = compress(*joined(silicon), 12, method)
        assert found.selected.tolist() == expected.selected.tolist()
        assert_promised(found.growth().entropy, expected.growth().entropy)


# -- what they must obey -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_as_many_frames_as_asked(silicon, method):
    frames = [*silicon[:5], silicon[0][:0], *silicon[:5]]  # an empty frame, and copies: k-means has empty clusters
    for size in range(1, 13):
        found = compress(*joined(frames), size, method, seed=size)
        assert len(set(found.selected.tolist())) == min(size, 10)
        assert 5 not in found.selected
        assert found.n_env == sum(len(frames[f]) for f in found.selected)
    assert found.overlap == 1.0


def test_the_result_does_not_depend_on_threads(silicon):
    one, many = (compress(*joined(silicon), 20, threads=n) for n in (1, 5))
    assert one.selected.tolist() == many.selected.tolist()
    assert (one.entropy, one.diversity, one.overlap) == (many.entropy, many.diversity, many.overlap)
    assert (one.growth().entropy == many.growth().entropy).all()


@pytest.mark.parametrize("method", ["msc", "farthest"])
def test_short_sequences_choose_the_same(monkeypatch, method):
    rows = np.random.default_rng(2).normal(0, 0.05, (26, 1, 5))
    frames = [*rows, *rows]  # every other one is at no distance from a chosen one
    expected = compress(*joined(frames), 40, method).selected.tolist()
    monkeypatch.setattr(compression, "_SEQUENCES", 0)  # the 17th chosen frame and all after it come in their order
    assert compress(*joined(frames), 40, method).selected.tolist() == expected
    assert sorted(expected[:26]) == list(range(26))


def test_a_smaller_choice_is_the_beginning_of_a_larger_one(silicon):
    for method in set(METHODS) - {"kmeans"}:
        small, large = (compress(*joined(silicon), n, method).selected.tolist() for n in (4, 20))
        assert large[:4] == small, method


def test_kmeans_takes_one_frame_of_each_cluster():
    rng = np.random.default_rng(1)
    frames = [rng.normal(10 * (f % 4), 0.1, (5, 3)) for f in range(20)]
    for seed in range(5):
        found = compress(*joined(frames), 4, "kmeans", seed=seed).selected
        assert sorted(f % 4 for f in found) == [0, 1, 2, 3]


def test_frames_are_added_until_the_entropy_is_reached(silicon):
    every = compress(*joined(silicon), 1.0).growth()
    goal = every.entropy[5] - 1e-6
    found = compress(*joined(silicon), entropy=goal)
    growth = found.growth()
    assert (every.entropy[: len(found.selected)] == growth.entropy).all()
    assert (growth.entropy[:-1] < goal).all()
    assert found.entropy >= goal
    with pytest.raises(InputError, match=r"an entropy of 20 nats is not reached: all 26 frames have \d\.\d+ nats"):
        compress(*joined(silicon), entropy=20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "a number of frames from 1 on, or a share"),
        ({"size": 1.5}, "a number of frames from 1 on, or a share"),
        ({"size": True}, "a number of frames from 1 on, or a share"),
        ({"size": None}, "either a size or an entropy"),
        ({"entropy": 1.0}, "either a size or an entropy"),
        ({"size": None, "entropy": float("nan")}, "a number in nats, not nan"),
        ({"size": None, "entropy": 1.0, "method": "kmeans"}, "all frames at once"),
        ({"method": "fps"}, "must be one of msc, farthest, mean_farthest, kmeans, random, not 'fps'"),
        ({"method": "random", "reference": np.zeros((1, 2))}, 'a reference is for "msc"'),
        ({"reference": np.zeros((1, 3))}, "reference has 3 columns, x has 2"),
        ({"x": np.full((4, 2), np.nan)}, "x holds values that are not finite"),
        ({"x": np.zeros(4)}, r"x must have shape \(n, d\), not \(4,\)"),
        ({"x": np.zeros((0, 2)), "frame_offsets": [0, 0]}, "x has no rows"),
        ({"frame_offsets": [0, 3]}, "ascend from 0 to the number of rows, 4"),
        ({"frame_offsets": [0, 3, 2, 4]}, "ascend from 0 to the number of rows, 4"),
        ({"frame_offsets": [0.0, 4.0]}, r"whole numbers \(n_frames \+ 1,\), not float64"),
        ({"bandwidth": -1.0}, "bandwidth must be a positive number"),
    ],
)
def test_what_cannot_be_used_is_said(changes, message):
    arguments = {"x": np.zeros((4, 2)), "frame_offsets": [0, 2, 4], "size": 1} | changes
    with pytest.raises(InputError, match=message):
        compress(arguments.pop("x"), arguments.pop("frame_offsets"), **arguments)
