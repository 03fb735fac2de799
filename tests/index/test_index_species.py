"""How elements enter an index: what is compared with what, what each choice sees, and what the file keeps."""

from __future__ import annotations

from dataclasses import asdict

import naive
import numpy as np
import pytest
import ranks
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import MODES, H, alloy
from paths import DOCS
from rounding import assert_promised

from quests_md.descriptors import DescriptorSpec
from quests_md.errors import ElementError, FrameError, IndexFileError, InputError, MonitorError
from quests_md.frame import Frame
from quests_md.index import Index, _build, calibrate
from quests_md.information import delta_entropy
from quests_md.monitor import Monitor


@pytest.fixture(scope="module")
def reference():
    return [alloy(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def indexes(reference):
    """Index of every mode."""
    return {species: Index.build(reference, DescriptorSpec(species=species), H) for species in MODES}


def expected_dH(index, reference, query):
    """Return dH from rows in double precision, each against those of its own centre where that is the choice."""
    x, q = index.spec.compute(reference), index.spec.compute(query)
    if not index.spec.by_centre:
        return -naive.log_kernel_sum(q, x, H)
    dH = np.full(len(q), np.nan)
    for z in np.unique(q[:, 0]):
        mine = q[:, 0] == z
        dH[mine] = -naive.log_kernel_sum(q[mine, 1:], x[x[:, 0] == z, 1:], H)
    return dH


@pytest.mark.parametrize("species", MODES)
def test_ranks_build_and_calibrate_the_same_index(indexes, reference, species, monkeypatch):
    monkeypatch.setattr(_build, "_SHARED", 60)  # a frame or two, of six

    def work(comm):
        built = Index.build(reference, DescriptorSpec(species=species), H, comm=comm)
        built.calibration = calibrate(built, comm=comm)
        return built

    expected, calibration = indexes[species], calibrate(indexes[species])
    for built in ranks.run(4, work):
        for name in ("rows", "centre", "numbers", "order", "frame_offsets", "node_centres", "pair_distances"):
            np.testing.assert_array_equal(getattr(built, name), getattr(expected, name))
        assert built.calibration.describe() == calibration.describe()
        np.testing.assert_array_equal(built.calibration.maxima, calibration.maxima)


def test_a_frame_that_one_rank_cannot_describe_fails_all(reference, monkeypatch):
    monkeypatch.setattr(_build, "_SHARED", 1)
    broken = reference[1].copy()
    broken.positions[1] = broken.positions[0]

    def work(comm):
        return Index.build([reference[0], broken], DescriptorSpec(species="ignore"), H, comm=comm)

    first, other = ranks.run(2, work)
    assert (type(first), type(other)) == (MonitorError, FrameError)
    assert "rank 1 failed: FrameError" in str(first)


# -- what it answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("species", MODES)
def test_dH_is_that_of_the_rows_of_the_same_centre(indexes, reference, species):
    index, query = indexes[species], [alloy(99, 2), *reference[:2], alloy(7, 2, rattle=0.4)]
    expected = expected_dH(index, reference, query)
    dH = index.delta_entropy(query)
    np.testing.assert_allclose(dH, expected, rtol=1e-6, atol=2e-5)
    np.testing.assert_array_equal(index.delta_entropy(index.spec.compute(query)), dH)
    np.testing.assert_array_equal(index.delta_entropy(query, threads=3), dH)
    single = -index.log_kernel_sum(query, precision="single")
    assert (np.abs(single - dH) <= np.maximum(1e-4, 1e-6 * np.abs(dH))).all()


@pytest.mark.parametrize("species", MODES)
def test_a_dH_does_not_depend_on_the_other_queries(indexes, species):
    index = indexes[species]
    rows = index.spec.compute(alloy(99, 3))
    dH = index.delta_entropy(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(index.delta_entropy(rows[order]), dH[order])
    np.testing.assert_array_equal([index.delta_entropy(row[None])[0] for row in rows], dH)
    assert index.delta_entropy(rows[:0]).shape == (0,)


@pytest.mark.parametrize("species", ["centre", "neighbours"])
def test_the_information_of_plain_rows_compares_within_the_element_too(indexes, reference, species):
    index, query = indexes[species], alloy(99, 2)
    plain = delta_entropy(index.spec.compute(query), index.spec.compute(reference), H)
    np.testing.assert_allclose(index.delta_entropy(query), plain, rtol=1e-6, atol=2e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), species=st.sampled_from(MODES), threads=st.integers(1, 3))
def test_bounds_tell_what_lies_above_whatever_is_remembered(indexes, seed, species, threads):
    index, rng = indexes[species], np.random.default_rng(seed)
    rows = index.spec.compute([alloy(seed % 1000, 2, rattle=r) for r in (0.0, 0.1, 0.3)])
    dH = index.delta_entropy(rows)
    memory = rng.integers(-30, 40, len(rows)).astype(np.int32)
    for threshold in (float(np.median(dH)), 0.0, float(rng.uniform(-5, 50)), float(rng.choice(dH))):
        bound = index.upper_bound(rows, threshold, memory, threads)
        np.testing.assert_array_equal(bound > threshold, dH > threshold)
        np.testing.assert_array_equal(index.exceeds(rows, threshold), dH > threshold)
        assert (bound >= dH - 1e-9 * np.maximum(1.0, np.abs(dH))).all()


@pytest.mark.parametrize("species", ["centre", "neighbours"])
def test_what_certified_a_query_is_remembered(indexes, reference, species):
    index, rows = indexes[species], indexes[species].spec.compute(reference)
    memory = np.full(len(rows), -1, np.int32)
    threshold = float(np.quantile(index.delta_entropy(rows), 0.9))
    index.upper_bound(rows, threshold, memory)
    assert (memory >= 0).mean() > 0.5


@pytest.mark.parametrize("species", ["ignore", "full", "centre"])
def test_dH_of_quests_element_by_element(structure, quests, species):
    """`centre` is what `quests` computes of the rows of one element alone, and `full` of its own rows."""
    reference = [structure("nacl") * (2, 1, 1)]
    query = structure("nacl")
    query.rattle(0.04, seed=3)
    index = Index.build(reference, DescriptorSpec(species=species), H)
    if species == "full":
        rows = [quests.multicomponent(a, 32, 5.0, ["Cl", "Na"]) for a in (query, *reference)]
    else:
        rows = [quests.descriptors(a, 32, 5.0) for a in (query, *reference)]
    elements = np.unique(query.numbers).tolist() if species == "centre" else [None]
    for z in elements:
        mine, theirs = ((a.numbers == z) if z else slice(None) for a in (query, *reference))
        expected = quests.delta_entropy(rows[0][mine], rows[1][theirs], h=H)
        np.testing.assert_allclose(index.delta_entropy(query)[mine], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("species", ["centre", "neighbours"])
def test_an_element_that_is_a_neighbour_only_cannot_be_asked_about(structure, species):
    atoms = structure("nacl")
    of_sodium = Frame.from_atoms(atoms, watched=atoms.numbers == 11)
    index = Index.build(of_sodium, DescriptorSpec(species=species), H)
    assert (index.elements, index.centre_elements) == (("Na", "Cl"), ("Na",))
    assert len(index.delta_entropy(of_sodium)) == 4
    for ask in (index.delta_entropy, lambda query: index.exceeds(query, 5.0)):
        with pytest.raises(ElementError, match="Cl is the centre of no environment of the index, whose centres are Na"):
            ask(atoms)
    monitor = Monitor(index, select=1e6, halt=1e6)
    monitor.warm_up()
    assert monitor.observe(of_sodium).n == 4


@pytest.mark.parametrize("species", ["centre", "neighbours"])
def test_rows_without_the_number_of_their_centre_are_refused(indexes, species):
    index = indexes[species]
    rows = index.spec.compute(alloy(1, 2))
    for wrong in (rows[:, 1:], rows[0]):
        with pytest.raises(InputError, match=f"query must have shape \\(n, {index.spec.width}\\)"):
            index.delta_entropy(wrong)
    for value, match in ((np.nan, "not finite"), (29.5, r"29.5 \(no atomic number\) is the centre of no")):
        rows[1, 0] = value
        with pytest.raises(InputError, match=match):
            index.delta_entropy(rows)


@pytest.mark.parametrize("species", MODES)
@pytest.mark.parametrize("few", [0, 10**6])
def test_a_large_index_is_laid_out_in_turn(reference, indexes, monkeypatch, species, few):
    monkeypatch.setattr("quests_md.index._parts.LAID_OUT", 40)
    monkeypatch.setattr("quests_md.index._parts.FEW", few)
    large, query = Index.build(reference, DescriptorSpec(species=species), H), alloy(99, 2)
    assert_promised(large.delta_entropy(query), indexes[species].delta_entropy(query))
    assert not any(part._blocks for part in large._parts.values())


@pytest.mark.parametrize("species", MODES)
@pytest.mark.parametrize("precision", ["single", "double"])
def test_a_monitor_decides_alike_with_flagged_values(indexes, species, precision):
    index = indexes[species]
    select = float(np.quantile(index.delta_entropy(alloy(99, 3)), 0.8))
    made = {
        "exact": Monitor(index, select=select, halt=1e6, precision=precision),
        "flagged": Monitor(index, select=select, halt=1e6, values="flagged"),
    }
    for step in range(4):
        frame = Frame.from_atoms(alloy(99, 3, rattle=0.15 + 0.02 * step), step=step)
        dH = index.delta_entropy(frame)
        for values, monitor in made.items():
            decision = monitor.observe(frame)
            assert (decision.max_id, decision.n_select) == (dH.argmax(), np.count_nonzero(dH > select)), values
            assert decision.maximum == pytest.approx(dH.max(), abs=1e-9)


# -- what each choice sees -------------------------------------------------------------------------


SALT = {"NaCl": ("rocksalt", 5.64), "KBr": ("rocksalt", 6.60), "CaF2": ("fluorite", 5.46)}


def crystal(name):
    structure, a = SALT[name]
    return bulk(name, structure, a=a, cubic=True) * (2, 2, 2)


def changed(name, **exchanges):
    """Return a perfect crystal of which atoms, by row, are of another element."""
    atoms = crystal(name)
    symbols = np.array(atoms.get_chemical_symbols())
    for symbol, rows in exchanges.items():
        symbols[rows] = symbol
    atoms.set_chemical_symbols(symbols.tolist())
    return atoms


def beside(atoms, rows):
    """Return the nearest neighbours of atoms, but for those atoms."""
    distances = np.array([atoms.get_distances(i, range(len(atoms)), mic=True) for i in rows])
    distances[distances < 0.1] = np.inf
    found = np.flatnonzero((distances < distances.min() + 0.1).any(axis=0))
    return np.setdiff1d(found, rows)


def situations():
    """Return frames, and which of their atoms are looked at: by the first two columns of the manual's table."""
    salt, fluorite = crystal("NaCl"), crystal("CaF2")
    sodium, chlorine = np.flatnonzero(salt.numbers == 11), np.flatnonzero(salt.numbers == 17)
    calcium, fluorine = np.flatnonzero(fluorite.numbers == 20), np.flatnonzero(fluorite.numbers == 9)
    pair, other = [sodium[0], chlorine[20]], [calcium[0], fluorine[40]]
    antisite = changed("NaCl", Cl=pair[0], Na=pair[1])
    one, all_of_them = changed("NaCl", Br=chlorine[3]), changed("NaCl", Br=chlorine)
    fluorite_antisite = changed("CaF2", F=other[0], Ca=other[1])
    return {
        ("antisite: a Na and a Cl of NaCl change places", "these two"): (antisite, pair),
        ("", "their nearest neighbours"): (antisite, beside(antisite, pair)),
        ("antisite: a Ca and a F of CaF₂ change places", "these two"): (fluorite_antisite, other),
        ("swapped neighbour: one Cl of NaCl becomes Br", "the Na around it"): (one, beside(one, chlorine[3:4])),
        ("isotypic substitution: all Cl of NaCl become Br", "Na"): (all_of_them, sodium),
        (" ", "Br, known from KBr"): (all_of_them, chlorine),
    }


def test_the_manual_tells_what_each_choice_sees():
    """Where it sees nothing, the environment is one of the reference: dH ≤ 0. Where it does, dH is far above."""
    reference, seen = [crystal(name) for name in SALT], {}
    for species in MODES:
        index = Index.build(reference, DescriptorSpec(species=species))
        for key, (atoms, rows) in situations().items():
            dH = index.delta_entropy(atoms)[rows]
            assert (dH <= 0).all() or (dH > 5).all(), (species, key, dH)
            seen.setdefault(key, []).append("sees it" if dH[0] > 5 else "no")
    lines = (DOCS / "method.md").read_text(encoding="utf-8").splitlines()
    first = lines.index("| change | seen at | `ignore` | `full` | `centre` | `neighbours` |")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first + 2 : first + 2 + len(seen)]]
    assert table == [[change.strip(), place, *answers] for (change, place), answers in seen.items()]


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("species", MODES)
def test_what_is_saved_is_opened(indexes, tmp_path, species):
    index, path = indexes[species], tmp_path / "a.qindex"
    index.save(path)
    Index.verify(path)
    opened = Index.open(path)
    assert opened.spec == index.spec
    assert opened.spec.elements == (("Cu", "Zr") if species in ("full", "neighbours") else None)
    query = alloy(99, 2)
    np.testing.assert_array_equal(opened.delta_entropy(query), index.delta_entropy(query))
    np.testing.assert_array_equal(opened.exceeds(query, 5.0), index.delta_entropy(query) > 5.0)
    content = path.read_bytes()
    opened.save(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("species", MODES)
def test_every_row_is_that_of_its_environment(indexes, reference, species):
    index = indexes[species]
    rows = index.spec.compute(reference)[:, int(index.spec.by_centre) :]
    np.testing.assert_allclose(index.rows + index.centre, rows[index.order], rtol=0, atol=1e-7)
    np.testing.assert_array_equal(index.numbers, np.concatenate([a.numbers for a in reference])[index.order])
    assert (np.diff(index.numbers) >= 0).all() or not index.spec.by_centre


@pytest.mark.parametrize("species", ["centre", "neighbours"])
def test_rows_that_are_not_by_element_are_refused(indexes, tmp_path, monkeypatch, species):
    path, match = tmp_path / "a.qindex", "rows are not in the order of their elements"
    monkeypatch.setattr(indexes[species], "numbers", indexes[species].numbers[::-1])
    with pytest.raises(InputError, match=match):
        indexes[species].save(path)
    with monkeypatch.context() as patch:
        patch.setattr("quests_md.index._file.check_sections", lambda *made: None)
        indexes[species].save(path)
    with pytest.raises(IndexFileError, match=match):
        Index.open(path)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"elements": ["Cu"]}, "width of the rows|elements is not that of the descriptor"),
        ({"elements": ["Cu", "Ni"]}, "list of elements is not that of the descriptor"),
        ({"elements": None}, "needs the elements"),
        ({"elements": "CuZr"}, "malformed"),
        ({"elements": [["Cu"], 3]}, "malformed"),
        ({"species": "centre"}, "malformed"),
        ({"species": "full"}, "width of the rows"),
    ],
)
def test_a_spec_that_does_not_fit_the_file_is_refused(indexes, tmp_path, monkeypatch, spec, match):
    path = tmp_path / "a.qindex"
    monkeypatch.setattr("quests_md.index._file.asdict", lambda made: asdict(made) | spec)
    indexes["neighbours"].save(path)
    with pytest.raises(IndexFileError, match=match):
        Index.open(path)


def test_the_automatic_bandwidth_holds_for_one_block(reference):
    assert Index.build(reference, DescriptorSpec(species="centre"), "auto").bandwidth > 0
    for species in ("full", "neighbours"):
        with pytest.raises(InputError, match=f'holds for one block, not for species="{species}"'):
            Index.build(reference, DescriptorSpec(species=species), "auto")
