"""The picture of a run."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from watched import CANDIDATE, COVERED, build_index, frame_of, session_of

from quests_md import read_run
from quests_md.errors import InputError, MissingExtraError
from quests_md.report import generations, timeline


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "uq"
    with session_of(build_index(), folder) as session:
        for step in range(6):
            session.observe(frame_of(step, CANDIDATE if step > 3 else COVERED))
    return folder


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines}


def test_timeline_draws_what_the_table_holds(run_folder):
    times = np.linspace(0.0, 0.005, 9)
    figure = timeline(run_folder, temperature=(times, 300 + times), marks={"melted": 0.004})
    above, below = figure.axes
    table = np.genfromtxt(run_folder / "monitor.csv", delimiter=",", names=True, usecols=range(9))
    drawn = lines_of(below)
    assert (drawn["maximum"].get_ydata() == table["max"]).all()
    assert (drawn["median"].get_ydata() == table["q50"]).all()
    assert drawn["saved frame"].get_xdata().tolist() == pytest.approx([0.004, 0.005])
    assert {text.get_text() for text in below.texts} == {"select", "halt"}
    assert [text.get_text() for text in above.texts] == ["melted"]
    assert (above.lines[0].get_ydata() == 300 + times).all()


def test_timeline_without_temperature_has_one_panel(run_folder, tmp_path):
    figure = timeline(run_folder, marks={"a": 0.001, "b": 0.0012})
    assert len(figure.axes) == 1
    heights = [text.xyann[1] for text in figure.axes[0].texts if text.get_text() in "ab"]
    assert heights[1] > heights[0]
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_run_without_times_is_drawn_against_steps(tmp_path):
    with session_of(build_index(), tmp_path / "uq") as session:
        for step in (3, 7):
            frame = frame_of(step)
            frame.time = float("nan")
            session.observe(frame)
    (axes,) = timeline(read_run(tmp_path / "uq")).axes
    assert axes.get_xlabel() == "step"
    assert lines_of(axes)["maximum"].get_xdata().tolist() == [3, 7]


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(InputError, match=r"run\.json: no such file"):
        timeline(tmp_path)


def test_without_matplotlib_the_pip_line_is_told(run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quests_md\[plot\]'"):
        timeline(run_folder)


# -- a loop ------------------------------------------------------------------------------------------------------------

ROWS = """generation,labels,force_rmse,covered_share,first_halt_ps,shortest_ps
0,8,0.31,0.71,0.8,2
1,15,0.17,0.93,3.1,4
2,15,0.09,0.995,,5
"""


@pytest.fixture
def loop(tmp_path):
    (tmp_path / "learning.csv").write_text(ROWS)
    (tmp_path / "learning.json").write_text('{"stop": {"covered": 0.99, "force_error": 0.1}}')
    return tmp_path


def test_generations_draws_what_the_table_holds(loop):
    figure = generations(loop)
    covered, error, labels, halt = figure.axes
    assert covered.lines[0].get_ydata().tolist() == [0.71, 0.93, 0.995]
    assert error.lines[0].get_ydata().tolist() == [0.31, 0.17, 0.09]
    assert [bar.get_height() for bar in labels.patches] == [8, 15, 15]
    assert [set(axes.lines[1].get_ydata()) for axes in (covered, error)] == [{0.99}, {0.1}]
    drawn = lines_of(halt)
    assert drawn["first halt"].get_ydata().tolist() == [0.8, 3.1]
    assert (drawn["no halt until here"].get_xdata().tolist(), drawn["no halt until here"].get_ydata().tolist()) == (
        [2],
        [5],
    )
    figure.savefig(loop / "picture.png")
    assert (loop / "picture.png").stat().st_size > 10_000


def test_a_folder_without_a_generation_is_said(loop):
    (loop / "learning.csv").unlink()
    with pytest.raises(InputError, match=r"learning.csv: no such file: .* holds no loop with a finished generation"):
        generations(loop)


def test_a_damaged_state_of_a_loop_is_said(loop):
    (loop / "learning.json").write_text("{}")
    with pytest.raises(InputError, match=r"learning.json is not as a loop wrote it"):
        generations(loop)
