"""What pages say of force errors: those that were expected along a run, and beside the real ones of labelled frames."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from calibrations import labelled, moving, with_errors
from click.testing import CliRunner
from watched import session_of

from quests_md import Index
from quests_md.cli import main
from quests_md.errors import InputError
from quests_md.report import dataset_page, run_page

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


def test_what_cannot_be_compared_is_refused(index):
    frames, errors = moving(3, 5), [np.zeros(16)] * 3
    with pytest.raises(InputError, match="give an index, and frames"):
        dataset_page(frames, errors=errors, threads=1)
    plain = Index.build(moving(4, 1), bandwidth=0.03, threads=1)
    with pytest.raises(InputError, match="quests-md index residuals, then quests-md index calibrate"):
        dataset_page(frames, index=plain, errors=errors, threads=1)
    with pytest.raises(InputError, match="not one array for each frame"):
        dataset_page(frames, index=index, errors=errors[:2], threads=1)


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
