"""How results show themselves: in one line, as a table of HTML that is whole, and as a DataFrame."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from ase.build import bulk

from quests_md import Index, Monitor, Session, read_run
from quests_md.compression import compress
from quests_md.errors import MissingExtraError
from quests_md.frame import as_frames
from quests_md.index import calibrate
from quests_md.information import information as information_of
from quests_md.information import learning_curve, likelihood_bandwidth, sample_entropy
from quests_md.notebook import to_html
from quests_md.nuclei import NucleiSeries
from quests_md.thermo import heat_entropy, state_entropies, window_entropies


class Cells(HTMLParser):
    """The cells of a page, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells, self._open = list[str](), list[str]()
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self._open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def frames():
    made = [bulk("Si", cubic=True) for _ in range(20)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.05, seed=seed)
        atoms.info["step"] = seed
    return made


@pytest.fixture(scope="module")
def index(frames):
    made = Index.build(frames, bandwidth=0.03, threads=1)
    made.calibration = calibrate(made, threads=1)
    return made


def results(index, frames):
    """Return each kind of result, with the columns of its table; None if it has none."""
    x, offsets = index.spec.compute(frames), index.frame_offsets
    chosen = compress(x, offsets, 3)
    series = NucleiSeries(
        np.array([0, 10]), np.array([0.0, 1.0]), np.array([8, 8]), (np.array([3, 2]), np.array([], int))
    )
    T = np.array([300.0, 500.0, 700.0, 900.0])
    return [
        (information_of(x), None),
        (sample_entropy(x, 20), None),
        (learning_curve(x, [0.5, 1.0]), ["fractions", "sizes", "mean", "std", "standard_error"]),
        (likelihood_bandwidth(x), ["bandwidths", "log_likelihood"]),
        (chosen, None),
        (chosen.growth(), ["n_env", "entropy", "diversity", "overlap"]),
        (series, ["steps", "times", "n_env", "n_inside", "n_nuclei", "largest"]),
        (state_entropies([(x, offsets), (x, offsets)]), ["entropy", "error", "blocks"]),
        (window_entropies(x, offsets, 5), ["first", "last", "entropy", "error"]),
        (heat_entropy(T, T * 1e-4), ["temperature", "entropy", "error", "configurational"]),
        (index.calibration, None),
    ]


def test_results_are_one_line_and_a_table_of_html(index, frames):
    for result, _ in results(index, frames):
        line = repr(result)
        assert "\n" not in line
        assert len(line) < 600, line
        assert line.startswith(f"<{type(result).__name__}: ")
        cells = Cells(result._repr_html_()).cells
        assert len(cells) >= 4
        assert len(cells) % 2 == 0


def test_tables_become_data_frames(index, frames):
    pandas = pytest.importorskip("pandas")
    for result, columns in results(index, frames):
        if columns is None:
            assert not hasattr(result, "to_dataframe")
            continue
        table = result.to_dataframe()
        assert isinstance(table, pandas.DataFrame)
        assert list(table.columns) == columns
        first = getattr(result, columns[0])
        np.testing.assert_array_equal(table[columns[0]], first)


def test_without_pandas_the_line_to_type_is_said(index, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    growth = compress(index.spec.compute(frames), index.frame_offsets, 2).growth()
    with pytest.raises(MissingExtraError, match=r"pip install 'quests_md\[pandas\]'"):
        growth.to_dataframe()


def test_an_index_a_monitor_a_session_and_a_run_show_themselves(index, frames, tmp_path, capsys):
    monitor = Monitor(index, select={"false_alarm": 0.1}, halt=1e6)
    with Session(monitor, tmp_path / "uq") as session:
        assert repr(session).startswith("<Session: running; 0 evaluations")
        for frame in as_frames(frames):
            session.observe(frame)
        shown = Cells(session._repr_html_()).cells
        assert shown[shown.index("n_evaluated") + 1] == "20"
    assert repr(session).startswith("<Session: finished; 20 evaluations of 8 atoms")
    shown = Cells(monitor._repr_html_()).cells
    assert shown[shown.index("select") + 1] == "{'false_alarm': 0.1}"
    shown = Cells(index._repr_html_()).cells
    assert shown[shown.index("environments") + 1] == "160 in 20 frames"
    assert shown[shown.index("bandwidth") + 1] == "0.03 1/Å"
    run = read_run(tmp_path / "uq")
    shown = Cells(run._repr_html_()).cells
    assert shown[shown.index("status") + 1] == "finished"
    pytest.importorskip("pandas")
    assert len(run.to_dataframe()) == 20
    assert run.to_dataframe().equals(run.to_pandas())


def test_html_is_escaped():
    text = to_html("<script>", {"a & b": "<b>", "array": np.arange(6.0).reshape(2, 3), "many": tuple(range(9))})
    assert "<script>" not in text
    assert "<b>" not in text.replace("<b>&lt;script", "")
    assert Cells(text).cells == ["a & b", "<b>", "array", "array of 2 × 3, 0 to 5", "many", "9 of them"]
