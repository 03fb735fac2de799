"""What pages say of force errors: those that were expected along a run, and beside the real ones of labelled frames."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from calibrations import labelled, moving, with_errors
from click.testing import CliRunner
from matplotlib.figure import Figure
from watched import session_of

from quests_md import DescriptorSpec, Frame, Index
from quests_md.cli import main
from quests_md.errors import InputError
from quests_md.report import dataset_page, run_page
from quests_md.report._run_errors import _scale_errors

SELECT = -4.0


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    made = with_errors(Index.build(moving(40, 1), bandwidth=0.03, threads=1))
    path = tmp_path_factory.mktemp("index") / "si.qindex"
    made.save(path)
    return Index.open(path)


def run_of(index, folder, scales, **more):
    with session_of(index, folder, select=SELECT, halt=1e6, **more) as session:
        return [
            session.observe(moving(1, 100 + step, scale, (2, 2, 2), step=step, time=0.01 * step)[0])
            for step, scale in enumerate(scales)
        ]


def cells_of(page, title):
    """Return the cells of each row of the table with this title."""
    table = page.partition(title)[2].partition("</table>")[0]
    rows = table.partition("<tbody>")[2].split("<tr")[1:]
    return [[cell.partition(">")[2].partition("<")[0].strip() for cell in row.split("<td")[1:]] for row in rows]


@pytest.mark.parametrize("values", ["exact", "flagged"])
def test_the_page_of_a_run_tells_the_errors_that_were_expected(index, tmp_path, values):
    decisions = run_of(index, tmp_path / "uq", [0.03, 0.05, 0.09, 0.1], values=values)
    page = run_page(tmp_path / "uq")
    largest = max(decision.expected_error for decision in decisions)
    for text in ("Largest expected error", f"{largest:.4g}", "Expected force errors", "This is no guarantee"):
        assert text in page, text
    assert "Largest expected errors" in page  # the environments
    share = 100 * max(decision.n_outside / decision.n for decision in decisions)
    assert share > 0
    assert f"{share:.3g}" in page
    assert ("errors of atoms whose dH is not exact are estimates" in page) == (values == "flagged")


def test_a_run_without_them_has_the_page_that_it_had(index, tmp_path):
    plain = Index.build(moving(4, 1), bandwidth=0.03, threads=1)
    run_of(plain, tmp_path / "uq", [0.05, 0.1])
    page = run_page(tmp_path / "uq")
    assert "xpected error" not in page
    assert "xpected force error" not in page


def test_a_run_of_which_all_is_outside(index, tmp_path):
    run_of(index, tmp_path / "uq", [0.5, 0.55], min_distance=0.0)
    page = run_page(tmp_path / "uq")
    assert "Atoms outside" in page
    assert "Largest expected error<" not in page
    assert "No watched atom was ever inside" in page
    assert "has no RMSE" not in page


@pytest.mark.parametrize("scales", [[0.03], [0.03, 0.04]])
def test_a_run_of_which_nothing_is_outside(index, tmp_path, scales):
    run_of(index, tmp_path / "uq", scales)
    page = run_page(tmp_path / "uq")
    assert "No atom was outside" in page
    assert "has no RMSE" not in page


def test_a_dot_of_one_evaluation_is_inside_the_axis():
    axes = Figure().subplots()
    axes.plot([0.0], [0.3], "o")
    _scale_errors(axes, [np.array([0.3]), np.array([np.nan])])
    assert axes.get_ylim() == pytest.approx((0.0, 0.324))


def test_the_page_of_a_dataset_sets_expected_errors_beside_real_ones(index):
    frames = moving(12, 5, 0.05) + moving(2, 6, 0.5)
    groups = ["calm"] * 12 + ["wild"] * 2
    for frame, group in zip(frames, groups, strict=True):
        frame.group = group
    fitted = index.calibration.local_error
    errors, told = [], []
    for i, frame in enumerate(frames):
        dH, s = index.local_residuals(frame)
        errors.append(np.random.default_rng(i).random(len(dH)) * 0.02)
        told.append((errors[-1], dH, s, frame.numbers, np.full(len(dH), i)))
    page = dataset_page(frames, index=index, errors=errors, threads=1)
    rows = {row[0]: row for row in cells_of(page, "Force errors by kind")}
    assert list(rows) == ["all", "calm", "wild"]
    share, low, high = fitted.judge(*(np.concatenate(column) for column in zip(*told[:12], strict=True)))
    assert rows["calm"][6] == f"{share:.1%} ({low:.1%} to {high:.1%})"
    assert 0.0 < low <= share <= high
    assert rows["wild"][3] == rows["wild"][2]  # all outside
    assert rows["wild"][5:] == ["–", "–"]
    assert np.isnan(fitted.judge(*(np.concatenate(column) for column in zip(*told[12:], strict=True)))).all()


def facts_of(page, name):
    """Return the value of a card."""
    return page.partition(f"<dt>{name}</dt>")[2].partition('<span class="value">')[2].partition("<")[0]


def test_it_says_what_was_covered_and_which_frames_are_in_the_reference(index):
    own = moving(40, 1)[3]  # a frame that the index was built of
    frames = [*moving(6, 5, 0.05), own]
    errors = [np.full(16, 0.001)] * 6 + [np.full(16, 9.0)]
    page = dataset_page(frames, index=index, errors=errors, threads=1)
    assert facts_of(page, "Errors below the bound") == f"{6 / 7:.1%}"
    assert facts_of(page, "Environments outside") == "0.00%"
    assert "1 of 7 frames is in the reference (frame 6, counted from 0)" in page
    page = dataset_page(frames[:6], index=index, errors=errors[:6], threads=1)
    assert "No frame is in the reference" in page
    assert ">bound</text>" in page  # its line


def salt(n, seed):
    frames = []
    for i in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (1, 1, 2)
        atoms.rattle(0.06, seed=1000 * seed + i)
        frames.append(Frame.from_atoms(atoms))
    return frames


def test_each_of_two_elements_has_its_bound():
    index = with_errors(Index.build(salt(40, 1), DescriptorSpec(species="neighbours"), bandwidth=0.05, threads=1))
    frames = [*salt(6, 2), salt(40, 1)[0]]
    page = dataset_page(frames, index=index, errors=[np.full(16, 0.01)] * 7, threads=1)
    assert [row[0] for row in cells_of(page, "Force errors by kind")] == ["all", "Na", "Cl"]
    for name in ("bound of Na", "bound of Cl"):
        assert f">{name}</text>" in page
    assert "1 of 7 frames is in the reference (frame 6" in page


def test_what_cannot_be_compared_is_refused(index):
    frames, errors = moving(3, 5), [np.zeros(16)] * 3
    with pytest.raises(InputError, match="give an index, and frames"):
        dataset_page(frames, errors=errors, threads=1)
    plain = Index.build(moving(4, 1), bandwidth=0.03, threads=1)
    with pytest.raises(InputError, match="quests-md index residuals, then quests-md index calibrate"):
        dataset_page(frames, index=plain, errors=errors, threads=1)
    with pytest.raises(InputError, match="not one array for each frame"):
        dataset_page(frames, index=index, errors=errors[:2], threads=1)
    for wrong in (np.nan, np.inf, -1.0):
        with pytest.raises(InputError, match=r"frame 2, .*finite numbers in eV/Å"):
            dataset_page(frames, index=index, errors=[*errors[:2], np.full(16, wrong)], threads=1)


def test_the_command_reads_both_forces(index, tmp_path):
    path = tmp_path / "labelled.extxyz"
    ase.io.write(path, labelled(moving(3, 5)))

    def run(*more, code=0):
        command = ["report", str(path), "-o", str(tmp_path / "page.html"), "--overwrite", *more]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == code, result.output + result.stderr
        return result

    run("--errors", "--index", str(index.path))
    assert "Force errors by kind" in (tmp_path / "page.html").read_text()
    run("--index", str(index.path))
    assert "Force errors by kind" not in (tmp_path / "page.html").read_text()
    assert "give an index, and frames" in run("--errors", code=1).stderr
    assert "give --errors, too" in run("--model-forces-key", "other", code=2).stderr
    compare = ("--errors", "--index", str(index.path))
    assert "needs other (the model's)" in run(*compare, "--model-forces-key", "other", code=1).stderr

    frames = ase.io.read(path, ":")
    for atoms in frames:
        atoms.arrays["other"] = atoms.arrays.pop("model_forces")
    ase.io.write(path, frames)
    run(*compare, "--model-forces-key", "other")
    assert "Force errors by kind" in (tmp_path / "page.html").read_text()

    for atoms in frames:
        atoms.arrays["other"] *= 23.0605
    ase.io.write(path, frames)
    assert "the model's in kcal/mol/Å" in run(*compare, "--model-forces-key", "other", code=1).stderr
    frames[1].arrays["other"][3] = np.nan
    ase.io.write(path, frames)
    said = run(*compare, "--model-forces-key", "other", code=1).stderr
    assert "labelled.extxyz: frame 1 needs other" in " ".join(said.split())
