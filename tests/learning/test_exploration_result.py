"""What an exploration came to, read from the files that its process left."""

from __future__ import annotations

import pytest
from watched import CANDIDATE, COVERED, HALTING, build_index, frame_of, frames_of, rows_of, session_of

from quests_md.errors import OutputError
from quests_md.learning._exploration import Explore, Job, conclude

OF_JOB = {"potential": "p", "index": "i", "start": "s.xyz", "temperature": 300.0, "pressure": None, "seed": 1}


@pytest.fixture(scope="module")
def index():
    return build_index()


@pytest.fixture
def job(tmp_path):
    settings = Explore(start="s.xyz", temperature=[300.0], time=0.1, timestep=2.0)
    return Job("a", tmp_path / "a", settings=settings, monitor={"select": 2.0, "halt": 30.0}, **OF_JOB)


def watch(index, folder, *scales, **more):
    with session_of(index, folder, **more) as session:
        for step, scale in enumerate(scales):
            session.observe(frame_of(10 * step, scale))


def test_torn_ends_count_for_nothing_and_stay(index, job):
    watch(index, job.folder, COVERED, CANDIDATE, CANDIDATE, COVERED, HALTING)
    rows, frames = rows_of(job.folder), frames_of(job.folder)
    torn = {"monitor.csv": b"1,50,0.", "events.jsonl": b'{"event"', "candidates.extxyz": b'32\nLattice="1 2'}
    for name, text in torn.items():
        with open(job.folder / name, "ab") as file:
            file.write(text)
    result = conclude(job, "crashed", "killed by SIGKILL")
    assert (result.status, result.reason, result.frames) == ("crashed", "killed by SIGKILL", len(rows))
    assert (result.steps, result.time) == (40, pytest.approx(0.08))
    assert result.first_halt == pytest.approx(0.04) == float(rows[-1]["time"])
    n, above = (sum(int(row[name]) for row in rows) for name in ("n", "n_select"))
    assert result.covered_share == (n - above) / n < 1.0
    assert (result.candidates, result.n_candidates) == (job.folder / "candidates.extxyz", len(frames))
    assert not result.covered_to_end
    for name, text in torn.items():
        assert (job.folder / name).read_bytes().endswith(text)


def test_of_a_broken_frame_nothing_is_counted(index, job):
    with session_of(index, job.folder, implausible="continue") as session:
        for step in range(3):
            frame = frame_of(step)
            if step == 1:
                frame.positions[0] = frame.positions[1]
            session.observe(frame)
    result = conclude(job, "finished", "", 2)
    assert (result.frames, result.covered_share, result.covered_to_end, result.first_halt) == (3, 1.0, False, None)


def test_one_that_stayed_covered_and_one_that_wrote_nothing(index, job):
    watch(index, job.folder, COVERED, COVERED)
    result = conclude(job, "finished", "", 15)
    assert (result.steps, result.covered_share, result.covered_to_end, result.n_candidates) == (15, 1.0, True, 0)
    for path in job.folder.iterdir():
        path.unlink()
    result = conclude(job, "crashed", "killed by SIGKILL")
    assert (result.steps, result.frames, result.covered_share, result.covered_to_end) == (0, 0, 0.0, False)


@pytest.mark.parametrize("name", ["monitor.csv", "candidates.extxyz"])
def test_damage_is_not_passed_over(index, job, name):
    watch(index, job.folder, CANDIDATE, CANDIDATE)
    lines = (job.folder / name).read_bytes().split(b"\n")
    lines[1:2] = [b"x"] if name == "monitor.csv" else []
    (job.folder / name).write_bytes(b"\n".join(lines))
    with pytest.raises(OutputError, match=rf"{name}: "):
        conclude(job, "crashed", "")
